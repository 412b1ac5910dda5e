"""The commands: caption photographs, the demo page, preparing a data set, the leaderboard."""
