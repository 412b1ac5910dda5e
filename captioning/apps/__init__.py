"""The applications: captioning photographs, the demo, preparing a data set, the leaderboard."""
