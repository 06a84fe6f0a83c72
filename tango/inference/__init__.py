"""What makes a loaded model answer, without any benchmark: today, reading videos."""
