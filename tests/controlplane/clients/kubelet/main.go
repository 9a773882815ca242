// Kubelet answers what kube-apiserver asks a node for a pod: exec, attach, port-forward and logs, with the streaming code
// of the kubelet itself. There are no containers. Instead of one there is an echo and a few files in memory, so that
// whatever a client sees back has gone the whole way there and back.
//
// The first line that it prints is its port on loopback; it ends when its stdin does.
package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path"
	"strconv"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	protocols "k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/kubelet/pkg/cri/streaming/portforward"
	server "k8s.io/kubelet/pkg/cri/streaming/remotecommand"
	"k8s.io/utils/exec"
)

const idle = time.Hour

// Container is what stands for the containers of every pod: the files that were copied into it.
type Container struct {
	files sync.Map // absolute path: []byte
}

// ExecInContainer knows: cat (the echo), fail NUMBER, size (of the terminal), and what kubectl cp runs (test -d, tar).
func (c *Container) ExecInContainer(
	_ context.Context, _ string, _ types.UID, _ string, command []string,
	in io.Reader, out, errs io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize, _ time.Duration,
) error {
	switch name, arguments := command[0], command[1:]; name {
	case "cat":
		_, err := io.Copy(out, in)
		return err
	case "fail":
		fmt.Fprintln(errs, "failing as asked")
		code, err := strconv.Atoi(arguments[0])
		return exec.CodeExitError{Err: errors.Join(err, errors.New("failed")), Code: code}
	case "size":
		size := <-resize
		_, err := fmt.Fprintf(out, "%dx%d\r\n", size.Width, size.Height)
		return err
	case "test": // -d: what is copied to is the name of a file
		return exec.CodeExitError{Err: errors.New("not a directory"), Code: 1}
	case "tar":
		return c.tar(arguments, in, out)
	default:
		return fmt.Errorf("there is no %s here", name)
	}
}

// tar is `tar cf - PATH` and `tar -xmf - -C FOLDER`.
func (c *Container) tar(arguments []string, in io.Reader, out io.Writer) error {
	if arguments[0] == "cf" {
		name := arguments[len(arguments)-1]
		data, found := c.files.Load(path.Clean(name))
		if !found {
			return exec.CodeExitError{Err: errors.New("no such file"), Code: 2}
		}
		content := data.([]byte)
		archive := tar.NewWriter(out)
		header := tar.Header{Name: name[1:], Mode: 0o600, Size: int64(len(content)), Typeflag: tar.TypeReg}
		if err := archive.WriteHeader(&header); err != nil {
			return err
		}
		if _, err := archive.Write(content); err != nil {
			return err
		}
		return archive.Close()
	}
	archive := tar.NewReader(in)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var content bytes.Buffer
		if _, err := io.Copy(&content, archive); err != nil {
			return err
		}
		c.files.Store(path.Join("/", arguments[len(arguments)-1], header.Name), content.Bytes())
	}
}

// AttachContainer is the echo.
func (c *Container) AttachContainer(
	_ context.Context, _ string, _ types.UID, _ string,
	in io.Reader, out, _ io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize,
) error {
	_, err := io.Copy(out, in)
	return err
}

// PortForward says which port it is and then is the echo.
func (c *Container) PortForward(_ context.Context, _ string, _ types.UID, port int32, stream io.ReadWriteCloser) error {
	if _, err := fmt.Fprintf(stream, "port %d\n", port); err != nil {
		return err
	}
	_, err := io.Copy(stream, stream)
	return err
}

// logs writes one line at once and, if it is followed, one more for each that is posted to /say.
func logs(lines <-chan string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "log of %s\n", r.PathValue("pod"))
		if r.FormValue("follow") != "true" {
			return
		}
		for {
			_ = http.NewResponseController(w).Flush()
			select {
			case line, open := <-lines:
				if !open {
					return
				}
				fmt.Fprintln(w, line)
			case <-r.Context().Done():
				return
			}
		}
	}
}

func routes() http.Handler {
	container := &Container{}
	lines := make(chan string)
	mux := http.NewServeMux()
	mux.HandleFunc("/exec/{namespace}/{pod}/{container}", func(w http.ResponseWriter, r *http.Request) {
		options, err := server.NewOptions(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		server.ServeExec(w, r, container, r.PathValue("pod"), "", r.PathValue("container"), r.Form["command"], options,
			idle, protocols.DefaultStreamCreationTimeout, protocols.SupportedStreamingProtocols)
	})
	mux.HandleFunc("/attach/{namespace}/{pod}/{container}", func(w http.ResponseWriter, r *http.Request) {
		options, err := server.NewOptions(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		server.ServeAttach(w, r, container, r.PathValue("pod"), "", r.PathValue("container"), options,
			idle, protocols.DefaultStreamCreationTimeout, protocols.SupportedStreamingProtocols)
	})
	mux.HandleFunc("/portForward/{namespace}/{pod}", func(w http.ResponseWriter, r *http.Request) {
		options, err := portforward.NewV4Options(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		portforward.ServePortForward(w, r, container, r.PathValue("pod"), "", options,
			idle, protocols.DefaultStreamCreationTimeout, portforward.SupportedProtocols)
	})
	mux.HandleFunc("/containerLogs/{namespace}/{pod}/{container}", logs(lines))
	mux.HandleFunc("/say", func(w http.ResponseWriter, r *http.Request) {
		select {
		case lines <- r.FormValue("line"):
		case <-r.Context().Done():
		}
	})
	return mux
}

// certificate is self-signed: kube-apiserver verifies no kubelet unless it is told by whom.
func certificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "kubelet"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	made, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{made}, PrivateKey: key}, err
}

func run() error {
	pair, err := certificate()
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	// HTTP/1.1 alone: an upgrade needs it.
	config := &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}}
	go func() {
		fmt.Fprintln(os.Stderr, "kubelet:", http.Serve(tls.NewListener(listener, config), routes()))
		os.Exit(1)
	}()
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "kubelet:", err)
		os.Exit(1)
	}
}
