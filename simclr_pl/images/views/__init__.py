"""Operations on views beyond the paper's: `data.views extended`."""
