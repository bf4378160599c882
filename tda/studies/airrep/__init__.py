"""What chapter 14 needs beside the method: other corpora and models to transfer to, and planted documents."""
