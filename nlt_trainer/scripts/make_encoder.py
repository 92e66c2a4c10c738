"""Make an encoder that was never trained for retrieval out of an LLM's token embeddings.

```bash
nlt make_encoder --config recipes/demo/likelihood_gain.yaml
```
"""

from __future__ import annotations

import re
from pathlib import Path

from nlt_trainer.arguments import RECIPE_BLOCKS
from nlt_trainer.errors import NLTError
from nlt_trainer.files import atomic_folder
from nlt_trainer.licences import model_licence
from nlt_trainer.models.encoder import encoder_from_token_embeddings
from nlt_trainer.models.locations import PACKAGE_SCHEME
from nlt_trainer.recipe import parse_recipe
from nlt_trainer.scripts import run_main, shown
from nlt_trainer.scripts.common import processes

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def main(argv: list[str] | None = None) -> None:
    """Write the Sentence-Transformers folder that the recipe's `encoder` names, from the recipe's `llm`.

    Raises:
        NLTError: `encoder` names no folder but a model in a package or, it seems, on the Hub.
    """
    model, _, args = parse_recipe(RECIPE_BLOCKS, argv, description=shown(__doc__))
    if not processes(args).is_main_process:
        return
    if model.encoder.startswith(PACKAGE_SCHEME):
        raise NLTError(f"encoder {model.encoder!r} is a model in a package; name a folder to write the new encoder to")
    if HUB_ID.fullmatch(model.encoder) and not Path(model.encoder).parent.is_dir():
        raise NLTError(
            f"encoder {model.encoder!r} looks like a model on the Hub, which a folder of this name would hide; name a "
            f"folder to write the new encoder to, e.g. ./{model.encoder}"
        )
    encoder = encoder_from_token_embeddings(model.llm)
    encoder.model_card_data.license = model_licence(model.llm)
    with atomic_folder(model.encoder) as folder:
        encoder.save_pretrained(str(folder))
    print(f"{model.encoder}: token embeddings of {model.llm}, {encoder.get_embedding_dimension()} dimensions")


if __name__ == "__main__":
    run_main(main)
