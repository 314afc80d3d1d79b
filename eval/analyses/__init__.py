"""What the paper shows beside scores: lengths, answer spans, needles in haystacks, clusters, efficiency."""
