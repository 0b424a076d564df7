"""sslpl: semi-supervised loss prediction for deep active learning."""
