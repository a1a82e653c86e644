"""What tests share: stories, farms, checkpoints, clients."""
