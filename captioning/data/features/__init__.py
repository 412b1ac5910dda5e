"""The feature store: each image's grid, extracted once and found again by content."""
