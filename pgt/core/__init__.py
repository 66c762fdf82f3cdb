"""The pieces that every room uses: errors, contracts, words, signals, streams, files, the machine. No torch."""
