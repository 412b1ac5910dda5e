"""What a captioner can do: write captions, be trained, be scored, be saved and loaded."""
