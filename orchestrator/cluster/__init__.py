"""Ray: the connection, the executor on Ray Tune, Tune's schedulers. The only package that imports ray."""
