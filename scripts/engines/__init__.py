"""What every training needs: run state, checkpoints, descent, handlers."""
