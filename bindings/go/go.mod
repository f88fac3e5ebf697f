module github.com/tqkv/tqkv/bindings/go

go 1.24
