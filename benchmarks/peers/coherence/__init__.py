"""Workers that serve `GET /topics` and note when each of another process' writes has reached them."""
