"""Everything that names Ray: the connection, the executor on Ray Tune, Tune's schedulers."""
