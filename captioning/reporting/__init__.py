"""What runs leave behind, and what is made of it: results files, caption files, the leaderboard."""
