"""The memory of statistics of earlier batches."""

import torch

from espnet_lole.lole import replay
from espnet_lole.lole.replay import StatisticsMemory


def test_memory_forgets_the_oldest_first(monkeypatch):
    monkeypatch.setattr(replay, "MEMORY_SIZE", 6)
    memory = StatisticsMemory()
    for i in range(5):
        memory.add(torch.full((2, 3), float(i)), torch.tensor([i, i]))
        statistics, languages = memory.draw(200)
        assert set(languages.tolist()) == set(range(max(0, i - 2), i + 1))
        assert torch.equal(statistics, languages[:, None].expand(-1, 3).float())
    memory.clear()
    memory.add(torch.zeros(1, 3), torch.tensor([9]))
    assert memory.draw(4)[1].tolist() == [9] * 4
