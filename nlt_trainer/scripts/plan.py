"""Say what a recipe will cost before anything runs: LLM tokens, FLOPs, time and memory of each stage.

```bash
nlt plan --config recipes/demo/likelihood_gain.yaml --accelerator "A100 bf16"
```

Tokens are counted on the candidates, mined on the way where there are none; time comes from short runs of the stages.
"""

from __future__ import annotations

from nlt_trainer.arguments.stages import PLAN_BLOCKS
from nlt_trainer.program import run_main, shown
from nlt_trainer.recipe.parsing import parse_recipe


def main(argv: list[str] | None = None) -> None:
    """Print the plan."""
    model, data, args, plan = parse_recipe(PLAN_BLOCKS, argv, description=shown(__doc__), writes=["plan_file"])
    from nlt_trainer.plan.table import plan_recipe

    plan_recipe(model, data, args, plan)


if __name__ == "__main__":
    run_main(main)
