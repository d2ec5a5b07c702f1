package ipc_test

import (
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"

	"wscast/ipc"
)

func ExampleClient_Publish() {
	path, stop := serve()
	defer stop()

	client, err := ipc.Dial(path) // usually /run/wscast/publish.sock
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	receivers, err := client.Publish("news", []byte("hello"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("receivers:", receivers)
	// Output: receivers: 2
}

func ExampleClient_PublishMany() {
	path, stop := serve()
	defer stop()

	client, err := ipc.Dial(path)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	stream := client.PublishMany(func(a ipc.Answer) {
		if a.Err != nil {
			fmt.Printf("message %d: %v\n", a.Index, a.Err)
		}
	})
	for _, channel := range []string{"news", "bad channel", "news"} {
		if err := stream.Publish(channel, []byte("hello")); err != nil {
			log.Fatal(err)
		}
	}
	fmt.Println("first error:", stream.Close() != nil)
	// Output:
	// message 1: bad channel 'bad channel': a channel is 1 to 128 letters, digits and . _ - : /
	// first error: true
}

// serve runs a server whose broker has two clients and keeps nothing.
func serve() (path string, stop func()) {
	dir, err := os.MkdirTemp("", "wscast")
	if err != nil {
		log.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "publish.sock"), Net: "unix"})
	if err != nil {
		log.Fatal(err)
	}
	server := &ipc.Server{Broker: twoClients{}}
	go server.Serve(l)
	return l.Addr().String(), func() {
		server.Close()
		l.Close()
		os.RemoveAll(dir)
	}
}

type twoClients struct{ ipc.Broker }

func (twoClients) Publish(channel, message, id []byte) (int, bool, error) { return 2, false, nil }
func (twoClients) Flush()                                                 {}
