"""Make an encoder that was never trained for retrieval out of an LLM's token embeddings.

```bash
nlt make_encoder --config recipes/demo/likelihood_gain.yaml
```
"""

from __future__ import annotations

from nlt_trainer.arguments import RECIPE_BLOCKS
from nlt_trainer.files import atomic_folder
from nlt_trainer.models.encoder import encoder_from_token_embeddings
from nlt_trainer.recipe import parse_recipe
from nlt_trainer.scripts import run_main
from nlt_trainer.scripts.common import processes


def main(argv: list[str] | None = None) -> None:
    """Write the Sentence-Transformers folder that the recipe's `encoder` names, from the recipe's `llm`."""
    model, _, args = parse_recipe(RECIPE_BLOCKS, argv)
    if not processes(args).is_main_process:
        return
    encoder = encoder_from_token_embeddings(model.llm)
    with atomic_folder(model.encoder) as folder:
        encoder.save_pretrained(str(folder))
    print(f"{model.encoder}: token embeddings of {model.llm}, {encoder.get_embedding_dimension()} dimensions")


if __name__ == "__main__":
    run_main(main)
