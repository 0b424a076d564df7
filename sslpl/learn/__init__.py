"""Joint training, fine-tune of the loss prediction module, ranking losses, pseudo-labels, evaluation."""
