"""The experiments of AdaBN (arXiv 1603.04779) on data at hand, each a command with its claims."""
