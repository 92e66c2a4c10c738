"""Peak memory of one DREAM step when the encoder shares the LLM's weights, and when it has a copy of them.

```bash
python tests/benchmarks/shared_backbone.py --json runs/shared_backbone.json
```

Each case runs in a fresh process: a random Llama of 537 MB in float32 is loaded as the frozen LLM, an encoder with a
LoRA adapter is made of the same folder, and 2 queries with 4 documents each go forward and backward. On a CPU the
peaks are those of the resident set, imports included; with CUDA (not run so far) those of torch's allocator.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from measuring import MIB, in_fresh_process, peak_mib, show
from sentence_transformers.util import batch_to_device
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nlt_trainer.encoder.loading import load_encoder
from nlt_trainer.injection.document_prompts import build_prompts
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import PromptTokens
from nlt_trainer.objectives.dream import DREAMLoss
from nlt_trainer.prompts import PromptTemplate
from nlt_trainer.text_files import write_json

SIZE = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}


def write_model(folder: Path, *, vocabulary: int = 32_000, **size: Any) -> None:
    """A random Llama and a tokenizer with a token for each of the words w0, w1, ..."""
    words = {f"w{i}": i for i in range(vocabulary)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", eos_token="w1").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=vocabulary, max_position_embeddings=1024, **size)
    LlamaForCausalLM(config).save_pretrained(folder)


def measure(folder: Path, *, shared: bool) -> dict[str, Any]:
    """Load LLM and encoder and take one step, in this process."""
    before = peak_mib()
    lm = FrozenLM.from_pretrained(str(folder))
    lora = {"r": 16, "target_modules": ["q_proj", "v_proj"]}
    encoder = load_encoder(str(folder), pooling="lasttoken", lora=lora, backbone=lm if shared else None)
    weights = {t.data_ptr(): t.nbytes for model in (lm.model, encoder) for t in model.parameters()}
    heads = HeadSet(((0, 0),), ((1.0,) * lm.num_heads,) * lm.num_layers, lm.name, lm.fingerprint, {})
    loss = DREAMLoss(encoder, lm, heads=heads, document_mass="kept", hide_documents=False, micro_batch_size=1)
    queries = ["w2 w3 w4", "w5 w6 w7"]
    documents = [[" ".join(f"w{7 * k + i}" for i in range(64)) for k in range(4)] for _ in queries]
    tokens = PromptTokens(lm.tokenizer, PromptTemplate(query_prefix="w8"), max_document_tokens=64)
    prompts = build_prompts(tokens, queries, documents, target="query", context_length=lm.context_length)
    texts = [queries, [text for row in documents for text in row]]
    features = [batch_to_device(encoder.preprocess(part), lm.device) for part in texts]
    value = loss(features, prompts.as_dict())["dream"]
    value.backward()
    return {
        "weights_mib": round(sum(weights.values()) / MIB),
        "peak_before_loading_mib": round(before),
        "peak_mib": round(peak_mib()),
        "loss": round(value.item(), 4),
    }


def main() -> None:
    """Measure both cases, each in a process of its own; print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file of the results")
    parser.add_argument("--step", nargs=2, metavar=("FOLDER", "STEP"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        folder, step = arguments.step
        print(json.dumps(measure(Path(folder), shared=step == "shared")))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), **SIZE)
        results = {step: in_fresh_process(__file__, "--step", folder, step) for step in ("two copies", "shared")}
    show([{"weights": case, **row} for case, row in results.items()])
    if arguments.json:
        write_json(arguments.json, results)


if __name__ == "__main__":
    main()
