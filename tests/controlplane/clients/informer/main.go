// Informer watches as a controller does: with client-go's shared informers, on namespaces and on the ConfigMaps of one
// namespace. It prints one JSON object for each thing that happens, and ends when its stdin does.
//
// Whether it lists or streams the first state (WatchList) is client-go's own variable, KUBE_FEATURE_WatchListClient.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// Line is what is printed. LISTED and WATCHING are what it asked, BOOKMARK what came on the wire, SYNCED is said once the
// first state is whole, and ADDED, MODIFIED and DELETED are what a controller would be called with.
type Line struct {
	Resource string `json:"resource"`
	Event    string `json:"event"`
	Name     string `json:"name,omitempty"`
	Version  string `json:"resourceVersion,omitempty"`
}

var printing sync.Mutex

func say(resource, event string, object any) {
	line := Line{Resource: resource, Event: event}
	if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = gone.Obj
	}
	if found, err := meta.Accessor(object); err == nil {
		line.Name, line.Version = found.GetName(), found.GetResourceVersion()
	}
	printing.Lock()
	defer printing.Unlock()
	if err := json.NewEncoder(os.Stdout).Encode(line); err != nil {
		os.Exit(1) // nobody reads any more
	}
}

// asking is a ListerWatcher that says what it asks and which bookmarks come.
func asking(
	resource string,
	client kubernetes.Interface,
	list func(context.Context, metav1.ListOptions) (runtime.Object, error),
	open func(context.Context, metav1.ListOptions) (watch.Interface, error),
) cache.ListerWatcher {
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			say(resource, "LISTED", nil)
			return list(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			found, err := open(ctx, options)
			if err != nil {
				return nil, err
			}
			say(resource, "WATCHING", &metav1.ObjectMeta{ResourceVersion: options.ResourceVersion})
			return watch.Filter(found, func(event watch.Event) (watch.Event, bool) {
				if event.Type == watch.Bookmark {
					say(resource, "BOOKMARK", event.Object)
				}
				return event, true
			}), nil
		},
	}, client)
}

func follow(ctx context.Context, resource string, source cache.ListerWatcher, example runtime.Object) error {
	informer := cache.NewSharedInformer(source, example, 0)
	handlers := cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { say(resource, "ADDED", object) },
		UpdateFunc: func(_, object any) { say(resource, "MODIFIED", object) },
		DeleteFunc: func(object any) { say(resource, "DELETED", object) },
	}
	registered, err := informer.AddEventHandler(handlers)
	if err != nil {
		return err
	}
	go informer.RunWithContext(ctx)
	go func() {
		if cache.WaitForCacheSync(ctx.Done(), registered.HasSynced) {
			say(resource, "SYNCED", nil)
		}
	}()
	return nil
}

func run() error {
	kubeconfig := flag.String("kubeconfig", "", "file of the kubeconfig")
	namespace := flag.String("namespace", "", "namespace whose ConfigMaps are watched")
	contentType := flag.String("content-type", "application/json", "what is asked for first, with JSON as the second")
	flag.Parse()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		return err
	}
	config.AcceptContentTypes = *contentType + ",application/json"
	config.ContentType = *contentType
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	namespaces := client.CoreV1().Namespaces()
	configMaps := client.CoreV1().ConfigMaps(*namespace)
	if err := follow(ctx, "namespaces", asking("namespaces", client,
		func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return namespaces.List(ctx, options)
		}, namespaces.Watch), &corev1.Namespace{}); err != nil {
		return err
	}
	if err := follow(ctx, "configmaps", asking("configmaps", client,
		func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return configMaps.List(ctx, options)
		}, configMaps.Watch), &corev1.ConfigMap{}); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "informer:", err)
		os.Exit(1)
	}
}
