"""The paper's two views: crop, colour, blur, put together."""
