"""What an adapter has become: spectra, ranks, Gram residuals, orthogonality."""
