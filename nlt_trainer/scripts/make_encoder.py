"""Make an encoder that was never trained for retrieval out of an LLM's token embeddings.

```bash
nlt make_encoder --config recipes/objectives/likelihood_gain.yaml
```

The recipe's `llm` names the LLM, and its `encoder` names the Sentence-Transformers folder to write.
"""

from __future__ import annotations

from nlt_trainer.arguments.stages import RECIPE_BLOCKS
from nlt_trainer.program import run_main, shown
from nlt_trainer.recipe.parsing import parse_recipe


def main(argv: list[str] | None = None) -> None:
    """Write the Sentence-Transformers folder that the recipe's `encoder` names, from the recipe's `llm`."""
    model, data, args = parse_recipe(RECIPE_BLOCKS, argv, description=shown(__doc__), writes=["encoder"])
    from nlt_trainer.assembly.starts import make_encoder

    make_encoder(model, data, args)


if __name__ == "__main__":
    run_main(main)
