"""The phases of a cycle: train, finetune, evaluate, query, label."""
