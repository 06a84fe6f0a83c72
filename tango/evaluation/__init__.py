"""What every evaluation framework shares: settings, prompts, timing, provenance, journals and sweeps."""
