"""What a run leaves and shows: its folder, checkpoints, tables and pictures, progress, the tracker."""
