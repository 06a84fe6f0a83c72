"""A model that answers questions about videos, without any benchmark: checkpoints, video files, chat, timing."""
