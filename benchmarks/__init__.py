"""What the project costs, side by side with what users would take instead."""
