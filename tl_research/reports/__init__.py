"""What people read after runs: leaderboard, page, pictures, TensorBoard."""
