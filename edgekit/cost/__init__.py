"""What an option costs: latency tables, weight and memory bytes, and predictions made from them."""
