"""One run in several processes: ranks, collectives, batch norm over all of them."""
