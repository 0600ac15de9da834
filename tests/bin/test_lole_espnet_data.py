"""The data of ESPnet's own models: language tags, token lists, prompts, and the backbone for its Whisper."""

from pathlib import Path

import pytest
import sentencepiece
import torch
from conftest import tiny_whisper
from espnet2.text.build_tokenizer import build_tokenizer
from espnet2.text.token_id_converter import TokenIDConverter

from espnet_lole.bin.lole_espnet_data import main
from espnet_lole.whisper.checkpoint import load_whisper

TEXTS = {
    "de_1": ("de", "zwei kleine Hunde laufen"),
    "en_1": ("en", "two small dogs are running"),
    "zh_1": ("zh", "两只小狗在跑"),
    "de_2": ("de", "die Hunde sind klein"),
}
TABLES = {"wav.scp": "{0}.flac", "utt2num_samples": "16000", "utt2lang": "{1}", "text": "{2}"}


@pytest.fixture
def raw(tmp_path) -> Path:
    for name in ("train", "dev"):
        folder = tmp_path / "raw" / name
        folder.mkdir(parents=True)
        for table, value in (
            ("wav.scp", "{0}.flac"),
            ("utt2num_samples", "16000"),
            ("utt2lang", "{1}"),
            ("text", "{2}"),
        ):
            lines = (f"{utt} {value.format(utt, *row)}\n" for utt, row in sorted(TEXTS.items()))
            (folder / table).write_text("".join(lines), encoding="utf-8")
    return tmp_path / "raw"


def prepare(raw: Path, *options: str) -> Path:
    """Run the command on train and dev; return the folder of the written sets."""
    out = raw.with_name("espnet")
    sets = [f"{folder}/{name}" for folder in (raw, out) for name in ("train", "dev")]
    main(["--src", *sets[:2], "--dst", *sets[2:], *options])
    return out


def read(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(("token_type", "files"), [("bpe", ["bpe.model"]), ("char", ["nlsyms.txt"])])
def test_espnet_reads_texts_with_a_token_for_each_language(raw, token_type, files):
    """Its own tokenizer and converter: the first token that is not a space is the tag, and every token is listed."""
    folder = raw.with_name("tokens")
    out = prepare(raw, "--token_type", token_type, "--nbpe", "36", "--token_dir", str(folder))
    assert read(out / "dev" / "text")[2] == "en_1 [en] two small dogs are running"
    for table in ("wav.scp", "utt2num_samples", "utt2lang"):
        assert (out / "train" / table).read_bytes() == (raw / "train" / table).read_bytes()
    tokens = read(folder / "tokens.txt")
    assert tokens[:2] == ["<blank>", "<unk>"] and tokens[-1] == "<sos/eos>" and len(set(tokens)) == len(tokens)
    option = {"bpe": {"bpemodel": str(folder / files[0])}, "char": {"non_linguistic_symbols": str(folder / files[0])}}
    tokenizer = build_tokenizer(token_type, **option[token_type])
    converter = TokenIDConverter(tokens)
    for line in read(out / "train" / "text"):
        utt, _, text = line.partition(" ")
        pieces = tokenizer.text2tokens(text)
        assert next(piece for piece in pieces if piece != "▁") == f"[{TEXTS[utt][0]}]"
        assert 1 not in converter.tokens2ids(pieces) and tokenizer.tokens2text(pieces).strip() == text


def test_the_tokens_are_those_of_sentencepiece(raw):
    folder = raw.with_name("tokens")
    prepare(raw, "--nbpe", "36", "--token_dir", str(folder))
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "bpe.model"))
    pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    assert model.get_piece_size() == 36 == len(read(folder / "tokens.txt"))
    assert read(folder / "tokens.txt")[2:-1] == [p for p in pieces if p not in ("<unk>", "<s>", "</s>")]


@pytest.mark.parametrize(("nbpe", "message"), [("5000", "too high (5000)"), ("10", "smaller than required_chars")])
def test_a_number_of_tokens_that_does_not_fit_is_refused(raw, nbpe, message):
    with pytest.raises(SystemExit, match=f"^error: --nbpe {nbpe} does not fit the training texts: ") as caught:
        prepare(raw, "--nbpe", nbpe, "--token_dir", str(raw.with_name("tokens")))
    assert message in str(caught.value) and not raw.with_name("tokens").exists()


def test_a_token_list_of_asr_sh_is_not_replaced(raw):
    folder = raw.with_name("tokens")
    folder.mkdir()
    (folder / "tokens.txt").write_text("<blank>\n")
    with pytest.raises(SystemExit, match="holds files that were not made by this program"):
        prepare(raw, "--nbpe", "36", "--token_dir", str(folder))
    assert read(folder / "tokens.txt") == ["<blank>"]


def test_whisper_gets_prompts_and_the_weights_of_the_backbone(raw):
    backbone, file = raw.with_name("tiny"), raw.with_name("tiny.pt")
    tiny_whisper().save_pretrained(backbone)
    out = prepare(raw, "--backbone", str(backbone), "--pt", str(file))
    assert read(out / "train" / "prompt")[-1] == "zh_1 <|zh|> <|transcribe|>"
    assert (out / "train" / "text").read_bytes() == (raw / "train" / "text").read_bytes()
    before, written = (load_whisper(str(name)).model.state_dict() for name in (backbone, file))
    assert before.keys() == written.keys() and all(torch.equal(before[name], written[name]) for name in before)


@pytest.mark.parametrize(
    ("shape", "lang", "message"),
    [
        ({"mels": 128, "vocab": 51866}, "de", "ESPnet's Whisper takes 80 mel bins, .* has 128: take a Whisper before"),
        ({}, "yue", "'yue' .* is none of them"),
    ],
)
def test_what_espnets_whisper_lacks_is_named(raw, shape, lang, message):
    tiny_whisper(**shape).save_pretrained(raw.with_name("tiny"))
    (raw / "dev" / "utt2lang").write_text("".join(f"{utt} {lang}\n" for utt in sorted(TEXTS)))
    with pytest.raises(SystemExit, match=message):
        prepare(raw, "--backbone", str(raw.with_name("tiny")), "--pt", str(raw.with_name("tiny.pt")))
    assert not raw.with_name("tiny.pt").exists()
