"""What a run shows and leaves behind: metrics, console, samples, provenance, report, memory."""
