"""The pieces that every package uses: errors, contracts, words, signals, streams, files, the machine. No torch."""
