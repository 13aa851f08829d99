"""The blocks of settings, one file a block, validated without torch or monai."""
