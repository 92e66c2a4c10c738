"""Objectives, one a file; `nlt_trainer.arguments.OBJECTIVES` are their names in a recipe."""
