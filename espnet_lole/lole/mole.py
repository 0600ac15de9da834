"""LoRA MoLE: shallow layers shared by all languages, a classifier on them, one language's expert above."""

from __future__ import annotations

from torch import Tensor

from espnet_lole.lole.bank import ExpertBank
from espnet_lole.lole.classifier import ClassifierConfig, LanguageClassifier
from espnet_lole.lole.fusion import FORMS, FusedLinear, Fusion, FusionConfig
from espnet_lole.whisper.model import Backbone, Encoded


class MoLE:
    """Merges the experts of encoder layers ``1 .. L1`` of a bank and puts a language classifier behind them.

    Args:
        backbone: the Whisper with the bank's experts in it; changed in place.
        bank: prepared experts; they are frozen.
        fusion: how the shallow layers are merged.
        classifier: shape of the language classifier.

    Raises:
        ValueError: L1 is not between 0 and the number of encoder layers.
    """

    def __init__(self, backbone: Backbone, bank: ExpertBank, fusion: FusionConfig, classifier: ClassifierConfig) -> None:
        layers = len(backbone.encoder.layers)
        if not 0 <= fusion.shared_layers <= layers:
            raise ValueError(f"expected shared_layers from 0 to the encoder's {layers} layers, got {fusion.shared_layers}")
        self.backbone, self.bank = backbone, bank
        self.shared_layers = fusion.shared_layers
        prefixes = tuple(f"model.encoder.layers.{i}." for i in range(fusion.shared_layers))
        names = [name for name in bank.layers if name.startswith(prefixes)] if prefixes else []
        self.fusion = Fusion(names, len(bank.languages), fusion)
        self.classifier = LanguageClassifier(backbone.model.config.d_model, len(bank.languages), classifier)
        self._fused = {name: self._fuse(name, fusion.form) for name in names}
        for layer in bank.layers.values():
            layer.requires_grad_(False)

    def _fuse(self, name: str, form: str) -> FusedLinear:
        fused = FusedLinear(self.bank.layers[name], lambda: self.fusion.of(name), FORMS[form][1])
        self.backbone.model.set_submodule(name, fused)
        return fused

    def merge(self) -> None:
        """Put the merged updates into the shallow layers' weights, so that they cost no more than the backbone's."""
        for name, fused in self._fused.items():
            self.backbone.model.set_submodule(name, fused.merged())
            del self.bank.layers[name]
        self._fused = {}

    def shallow(self, speech: Tensor, lengths: Tensor) -> Encoded:
        """Samples at 16 kHz, shape (B, S), of lengths (B,), to the states after layer L1, the same for all languages."""
        return self.backbone.encode_layers(self.backbone.embed_speech(speech, lengths), 0, self.shared_layers)

    def deep(self, shallow: Encoded) -> Encoded:
        """The states after layer L1 to those of the whole encoder, through the experts that the bank routes to."""
        return self.backbone.finish(shallow, self.shared_layers)
