"""The output of runs: results files, caption files, reports, figures and the leaderboard."""
