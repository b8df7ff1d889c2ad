"""A dataset that grows by masks which a model proposed and somebody accepted, and the model that learns from them."""
