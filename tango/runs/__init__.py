"""One evaluation: settings from the environment, journal, samples, provenance, summary; see run.py."""
