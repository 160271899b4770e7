"""What a teacher takes into the room: agendas, slides, a poster, and a pack for laptops without a network."""
