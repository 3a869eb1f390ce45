package transport

import (
	"math/bits"
	"sync"
)

// Pool classes are powers of two. Below the least class the garbage collector is cheaper (and grpc's mem.NewBuffer
// never returns small buffers to a pool); above the greatest one a buffer is too much to keep around.
const (
	minClassBits = 12 // 4 KiB
	maxClassBits = 22 // 4 MiB
)

// bufferPool is a mem.BufferPool over power-of-two classes. It keeps *[]byte handles apart so that turning a buffer
// into a mem.Buffer and back allocates nothing.
type bufferPool struct {
	classes [maxClassBits - minClassBits + 1]sync.Pool // of *[]byte
	handles sync.Pool                                  // of *[]byte holding nil
}

// buffers is shared by all transports of a process: it holds no state but free memory, and GetBuffer has no receiver.
var buffers bufferPool

// GetBuffer returns an empty buffer with room for at least n bytes, from a pool that Stream.Send returns it to. A
// buffer that is never sent is simply left to the garbage collector.
func GetBuffer(n int) []byte {
	h := buffers.Get(n)
	b := (*h)[:0]
	buffers.putHandle(h)
	return b
}

// PutBuffer gives a buffer back that came from GetBuffer and was not sent. The caller must not use it any more.
func PutBuffer(b []byte) { buffers.Put(buffers.handle(b)) }

// Get implements mem.BufferPool: a slice of length n.
func (p *bufferPool) Get(n int) *[]byte {
	class := max(bits.Len(uint(max(n, 1)-1)), minClassBits)
	if class > maxClassBits {
		b := make([]byte, n)
		return p.handle(b)
	}
	if h, ok := p.classes[class-minClassBits].Get().(*[]byte); ok {
		*h = (*h)[:n]
		return h
	}
	return p.handle(make([]byte, n, 1<<class))
}

// Put implements mem.BufferPool. Buffers of foreign sizes are welcome: they count by what they can hold.
func (p *bufferPool) Put(h *[]byte) {
	c := cap(*h)
	if c < 1<<minClassBits || c >= 2<<maxClassBits {
		p.putHandle(h)
		return
	}
	*h = (*h)[:0]
	p.classes[bits.Len(uint(c))-1-minClassBits].Put(h)
}

func (p *bufferPool) handle(b []byte) *[]byte {
	h, ok := p.handles.Get().(*[]byte)
	if !ok {
		h = new([]byte)
	}
	*h = b
	return h
}

func (p *bufferPool) putHandle(h *[]byte) {
	*h = nil
	p.handles.Put(h)
}

// grow returns b with room for n more bytes, moving it to a larger pooled buffer where needed.
func (p *bufferPool) grow(h *[]byte, n int) {
	b := *h
	if cap(b)-len(b) >= n {
		return
	}
	next := p.Get(max(2*cap(b), len(b)+n))
	nb := (*next)[:len(b)]
	copy(nb, b)
	*h, *next = nb, b // the handle that the caller holds keeps its identity
	p.Put(next)
}
