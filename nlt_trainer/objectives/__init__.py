"""Objectives, one a file; `nlt_trainer.arguments.trainer.OBJECTIVES` are their names in a recipe."""
