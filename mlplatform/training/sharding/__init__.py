"""What sharded strategies are made of: the mesh, which blocks are divided how, experts, ZeRO, and whole states."""
