"""What a teacher takes into the room: agendas, slides, and a pack for laptops without a network."""
